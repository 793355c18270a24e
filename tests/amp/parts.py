"""A model and a data set for recipes of these tests, registered when this is imported: Global.imports names it too."""

import dataclasses

from paddle import nn

import plsc
from tests.amp.line import CLASSES, INPUTS, SAMPLES, SIDE, first_weights, pictures


@plsc.register_dataset()
class AmpPictures:
    """The random pictures of line.py."""

    class_names = None
    max_labels = 1

    def __init__(self):
        self.pixels, self.labels = pictures()

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return plsc.Sample(self.pixels[index], int(self.labels[index]), f"picture {index}")


@dataclasses.dataclass(frozen=True)
class Spec:
    img_size: int = SIDE
    in_chans: int = 1
    class_num: int = CLASSES


class Classifier(nn.Layer):
    """A linear head over the features of `body`."""

    def __init__(self, spec: Spec, body: nn.Layer, width: int):
        super().__init__()
        self.spec, self.body, self.width = spec, body, width
        self.reset_classifier(spec.class_num)

    def reset_classifier(self, class_num: int) -> None:
        self.spec, self.head = dataclasses.replace(self.spec, class_num=class_num), nn.Linear(self.width, class_num)

    def forward_features(self, x):
        return self.body(x)

    def forward_head(self, x, pre_logits: bool = False):
        return x.flatten(1) if pre_logits else self.head(x.flatten(1))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@plsc.register_model()
def AmpLine(img_size: int = SIDE, in_chans: int = 1, class_num: int = CLASSES):
    """The layer of line.py."""
    model = Classifier(Spec(img_size, in_chans, class_num), nn.Identity(), INPUTS)
    for name, parameter in model.named_parameters():
        parameter.set_value(first_weights()[name])
    return model


@plsc.register_model()
def AmpConvNet(img_size: int = SIDE, in_chans: int = 1, class_num: int = CLASSES):
    """With batch normalisation."""
    body = nn.Sequential(nn.Conv2D(in_chans, 8, 3, padding=1), nn.BatchNorm2D(8), nn.ReLU(), nn.MaxPool2D(2))
    return Classifier(Spec(img_size, in_chans, class_num), body, 8 * (img_size // 2) ** 2)
