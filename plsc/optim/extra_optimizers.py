"""LARS and Adafactor, which Paddle lacks or cannot run with float32 master weights.

Both are Paddle optimizers as far as GradScaler, amp.decorate and the state keeping in update.py
need: groups, `_accumulators` by parameter name, `_master_weights`. The arithmetic is float32.
"""

import paddle


class _Optimizer(paddle.optimizer.Optimizer):
    """A Paddle optimizer whose step is `_update(parameter, gradient, lr, group) → new value`."""

    def __init__(self, groups: list[dict], multi_precision: bool):
        super().__init__(learning_rate=0.0, parameters=groups)
        self._multi_precision = multi_precision

    def _low_precision(self, parameter) -> bool:
        return self._multi_precision and parameter.dtype in (paddle.float16, paddle.bfloat16)

    def _state_of(self, parameter) -> dict:
        """Names and shapes of the accumulators of one parameter."""
        raise AssertionError("a subclass says what it keeps")

    def _create_accumulators(self, block, parameters):
        for parameter in parameters:
            owner = self._create_master_weight(parameter) if self._low_precision(parameter) else parameter
            for name, shape in self._state_of(parameter).items():
                if owner.name not in self._accumulators[name]:
                    self._accumulators[name][owner.name] = paddle.zeros(shape, dtype="float32")

    @paddle.no_grad()
    def step(self):
        found_inf = self._get_auxiliary_var("found_inf")
        if found_inf is not None:
            self._set_auxiliary_var("found_inf", bool(found_inf))
            if found_inf:
                return
        for group in self._param_groups:
            for parameter in group["params"]:
                if parameter.stop_gradient or parameter.grad is None:
                    continue
                self._create_accumulators(None, [parameter])
                master = self._master_weights[parameter.name] if self._low_precision(parameter) else parameter
                lr = self._learning_rate * parameter.optimize_attr["learning_rate"]
                state = {name: accs[master.name] for name, accs in self._accumulators.items() if master.name in accs}
                value = self._update(master.astype("float32"), parameter.grad.astype("float32"), lr, group, state)
                paddle.assign(value.astype(master.dtype), output=master)
                if master is not parameter:
                    paddle.assign(value.astype(parameter.dtype), output=parameter)


def _norm(x):
    return paddle.sum(x * x).sqrt()


class Lars(_Optimizer):
    """v = m v + lr · local · (g + wd w);  w -= v;  local = trust · |w| / (|g| + wd |w| + epsilon)."""

    def __init__(self, groups, *, momentum, trust_coefficient, epsilon, multi_precision):
        super().__init__(groups, multi_precision)
        self._momentum, self._trust, self._eps = momentum, trust_coefficient, epsilon

    def _state_of(self, parameter):
        return {"velocity": parameter.shape}

    def _update(self, weight, gradient, lr, group, state):
        decay = group["lars_weight_decay"]
        if decay > 0.0:
            size, slope = _norm(weight), _norm(gradient)
            local = self._trust * size / (slope + decay * size + self._eps)
            local = paddle.where((size > 0) & (slope > 0), local, paddle.ones_like(local))
            gradient = (gradient + decay * weight) * local
        velocity = state["velocity"] * self._momentum + lr * gradient
        paddle.assign(velocity, output=state["velocity"])
        return weight - velocity


class Adafactor(_Optimizer):
    """Adafactor without relative step: the rate is the schedule's, times RMS(w) with scale_parameter.

    Parameters of two or more dimensions keep the means of g² over rows and over columns of their
    [first dimension, rest] matrix; the others keep g² itself. The decay at update t is 1 - t ** decay_rate.
    """

    def __init__(
        self, groups, *, epsilon, eps_scale, clip_threshold, decay_rate, beta1, scale_parameter, multi_precision
    ):
        super().__init__(groups, multi_precision)
        self._eps, self._eps_scale, self._clip_threshold = epsilon, eps_scale, clip_threshold
        self._decay_rate, self._beta1, self._scale_parameter = decay_rate, beta1, scale_parameter

    def _state_of(self, parameter):
        shape = list(parameter.shape)
        state = {"update_count": [1]}
        if len(shape) >= 2:
            size = 1
            for n in shape[1:]:
                size *= n
            state.update(row_mean=[shape[0], 1], column_mean=[1, size])
        else:
            state["square_mean"] = shape
        if self._beta1 is not None:
            state["first_moment"] = shape
        return state

    def _update(self, weight, gradient, lr, group, state):
        count = state["update_count"] + 1.0
        paddle.assign(count, output=state["update_count"])
        beta2 = 1.0 - count.pow(self._decay_rate)
        square = gradient * gradient + self._eps
        if "row_mean" in state:
            square = square.reshape([weight.shape[0], -1])
            for name, axis in (("row_mean", 1), ("column_mean", 0)):
                mean = state[name] * beta2 + square.mean(axis=axis, keepdim=True) * (1.0 - beta2)
                paddle.assign(mean, output=state[name])
            rows = state["row_mean"]
            estimate = (rows / rows.mean()) * state["column_mean"]
            update = gradient * estimate.rsqrt().reshape(weight.shape)
        else:
            mean = state["square_mean"] * beta2 + square * (1.0 - beta2)
            paddle.assign(mean, output=state["square_mean"])
            update = gradient * mean.rsqrt()
        update = update / paddle.clip(_rms(update) / self._clip_threshold, min=1.0)
        rate = lr * paddle.clip(_rms(weight), min=self._eps_scale) if self._scale_parameter else lr
        update = update * rate
        if self._beta1 is not None:
            update = state["first_moment"] * self._beta1 + update * (1.0 - self._beta1)
            paddle.assign(update, output=state["first_moment"])
        decay = group["adafactor_weight_decay"]
        return weight - update - weight * (rate * decay) if decay else weight - update


def _rms(x):
    return (x * x).mean().sqrt()
