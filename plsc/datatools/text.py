"""What `check` reports and `prepare` has written, as lines to read."""

from typing import Any

from plsc.data.words import counted, some

_SHOWN = 20  # of a long list; the report and the manifest have more


def summary(report: dict[str, Any]) -> str:
    """A report of `check`, or a manifest of `prepare`, in lines. Bytes of names that are not text are escaped."""
    lines = _of_manifest(report) if "shards" in report else _of_report(report)
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def _of_manifest(manifest: dict) -> list[str]:
    skipped = manifest["skipped"]
    left_out = f"; {counted(len(skipped), 'damaged picture')} left out" if skipped else ""
    return [
        *_damaged(skipped, len(skipped)),
        f"{counted(manifest['count'], 'sample')} in {counted(len(manifest['shards']), 'shard')}, "
        f"{manifest['bytes'] / 1e6:,.1f} MB{left_out}",
    ]


def _of_report(report: dict) -> list[str]:
    lines = [f"{counted(report['samples'], 'sample')}, {report['readable']:,} of them readable"]
    lines += [f"  {count:>9,}  {kind}" for kind, count in report["kinds"].items()]
    if report["sizes"]:
        lines.append("pixels             min   median      max")
        for side, of in report["sizes"].items():
            lines.append(f"  {side.replace('_', ' '):<12} {of['min']:>7,} {of['median']:>8,.0f} {of['max']:>8,}")
    for remark, pictures in report["oddities"].items():
        lines.append(f"{pictures['count']:,} x {remark}: {_first(pictures['examples'], pictures['count'], 3)}")
    lines += _classes(report["classes"])
    lines += _duplicates(report["duplicates"])
    damaged, out_of_range = report["damaged"], report["labels_out_of_range"]
    lines += _damaged(damaged["examples"], damaged["count"])
    if damaged["count"] > len(damaged["examples"]):
        lines.append(f"damaged pictures are counted; the report lists the first {len(damaged['examples']):,}")
    lines += [f"label out of range: {sample['name']}: {sample['label']}" for sample in out_of_range["examples"]]
    lines += _rest(out_of_range["count"] - len(out_of_range["examples"]))
    if report["thresholds"]:
        lines.append("label probability   labels per kept picture   pictures kept")
        for row in report["thresholds"]:
            kept = f"{row['labels_per_kept']:>20.2f} {100 * row['kept']:>21.1f} %"
            lines.append(f"  at least {row['threshold']:.2f} {kept}")
    return lines


def _classes(classes: dict) -> list[str]:
    counts, names, empty = classes["counts"], classes["names"], classes["empty"]
    if classes["ratio"] is None:
        return []

    def named(label: int) -> str:
        return names[label] if names is not None and label < len(names) else f"class {label}"

    smallest, largest = classes["smallest"], classes["largest"]
    if counts[smallest] == counts[largest]:
        line = f"{counted(len(counts), 'class', 'classes')}, none with more pictures than {counts[largest]:,}"
    else:
        line = (
            f"{len(counts):,} classes: the smallest is {named(smallest)} with {counts[smallest]:,}, the largest "
            f"{named(largest)} with {counts[largest]:,}, {classes['ratio']:.1f} times as many"
        )
    if not empty:
        return [line]
    return [line, f"{counted(len(empty), 'class', 'classes')} without pictures: {some(list(map(named, empty)))}"]


def _duplicates(groups: list[dict]) -> list[str]:
    if not groups:
        return []
    copies = sum(len(group["pictures"]) - 1 for group in groups)
    across = sum(group["across_classes"] for group in groups)
    line = f"there more than once: {counted(len(groups), 'picture')}, with {counted(copies, 'copy', 'copies')}"
    lines = [line + (f"; {across:,} of them with different labels" if across else "")]
    for group in sorted(groups, key=lambda group: not group["across_classes"])[:_SHOWN]:
        remark = "different labels: " if group["across_classes"] else ""
        lines.append(f"  {remark}{' = '.join(group['pictures'])}")
    return [*lines, *_rest(len(groups) - _SHOWN)]


def _damaged(pictures: list[dict], count: int) -> list[str]:
    shown = pictures[:_SHOWN]
    return [*(f"damaged: {picture['reason']}" for picture in shown), *_rest(count - len(shown))]


def _rest(count: int) -> list[str]:
    return [f"  … and {count:,} more"] if count > 0 else []


def _first(names: list[str], count: int, most: int) -> str:
    return ", ".join(names[:most]) + (", …" if count > most else "")
