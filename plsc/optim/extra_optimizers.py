"""LARS, Adafactor, Lion and Muon, which Paddle lacks or cannot run with float32 master weights.

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
            self._set_auxiliary_var("found_inf", bool(found_inf))  # read from the device, once
            if self._get_auxiliary_var("found_inf"):
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
    """v = m v + lr · local · (g + wd w);  w -= v;  local = trust · |w| / (|g| + wd |w| + epsilon), where it adapts."""

    def __init__(self, groups, *, momentum, trust_coefficient, epsilon, multi_precision):
        super().__init__(groups, multi_precision)
        self._momentum, self._trust, self._eps = momentum, trust_coefficient, epsilon

    def _state_of(self, parameter):
        return {"velocity": parameter.shape}

    def _update(self, weight, gradient, lr, group, state):
        decay = group["lars_weight_decay"]
        if group["lars_adapts"]:
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
    [first dimension, rest] matrix; the others keep g² itself. The decay at update t is 1 - t ** decay_rate, and
    beta2_cap at most.
    """

    def __init__(
        self,
        groups,
        *,
        epsilon,
        eps_scale,
        clip_threshold,
        decay_rate,
        beta2_cap,
        beta1,
        scale_parameter,
        multi_precision,
    ):
        super().__init__(groups, multi_precision)
        self._eps, self._eps_scale, self._clip_threshold = epsilon, eps_scale, clip_threshold
        self._decay_rate, self._beta2_cap = decay_rate, beta2_cap
        self._beta1, self._scale_parameter = beta1, scale_parameter

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
        beta2 = paddle.clip(1.0 - count.pow(self._decay_rate), max=self._beta2_cap)
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
        if self._clip_threshold is not None:
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


class Lion(_Optimizer):
    """w -= lr · (sign(b1 m + (1 - b1) g) + wd w);  m = b2 m + (1 - b2) g."""

    def __init__(self, groups, *, betas, multi_precision):
        super().__init__(groups, multi_precision)
        self._betas = betas

    def _state_of(self, parameter):
        return {"first_moment": parameter.shape}

    def _update(self, weight, gradient, lr, group, state):
        beta1, beta2 = self._betas
        moment = state["first_moment"]
        direction = paddle.sign(beta1 * moment + (1.0 - beta1) * gradient)
        paddle.assign(beta2 * moment + (1.0 - beta2) * gradient, output=moment)
        return weight - lr * (direction + group["lion_weight_decay"] * weight)


# the quintic whose iteration brings singular values near 1 fastest (Jordan et al., 2024)
_NEWTON_SCHULZ, _NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


def orthogonalized(matrix: paddle.Tensor) -> paddle.Tensor:
    """U V' of a matrix U S V' [m, n], with singular values of about 0.7 … 1.2 instead of 1: Newton-Schulz, float32."""
    x = matrix.transpose([1, 0]) if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (_norm(x) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        square = x @ x.transpose([1, 0])
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.transpose([1, 0]) if matrix.shape[0] > matrix.shape[1] else x


class Muon(_Optimizer):
    """Matrices: w -= lr · scale · orthogonalized(momentum) + lr wd w. All others: AdamW.

    Args:
        matrices: Paddle's name of a parameter that is updated as a matrix → the number of matrices that lie
            side by side in it, each of them orthogonalised by itself.
        match_adamw: scale is 0.2 sqrt(max(in, out)), else sqrt(max(1, out / in)).
    """

    def __init__(self, groups, *, matrices, momentum, match_adamw, betas, epsilon, multi_precision):
        super().__init__(groups, multi_precision)
        self._matrices, self._momentum, self._match_adamw = matrices, momentum, match_adamw
        self._betas, self._eps = betas, epsilon

    def _state_of(self, parameter):
        if parameter.name in self._matrices:
            return {"momentum": parameter.shape}
        return {"update_count": [1], "first_moment": parameter.shape, "second_moment": parameter.shape}

    def _update(self, weight, gradient, lr, group, state):
        update = self._direction(gradient, state, group["muon_matrices"])
        return weight - lr * (update + group["muon_weight_decay"] * weight)

    def _direction(self, gradient, state, matrices: int):
        if not matrices:
            return self._adam(gradient, state)
        momentum = self._momentum * state["momentum"] + (1.0 - self._momentum) * gradient
        paddle.assign(momentum, output=state["momentum"])
        ahead = (1.0 - self._momentum) * gradient + self._momentum * momentum  # Nesterov's
        return paddle.concat([self._scaled(part) for part in ahead.split(matrices, axis=1)], axis=1)

    def _scaled(self, matrix):
        inputs, outputs = matrix.shape
        scale = 0.2 * max(inputs, outputs) ** 0.5 if self._match_adamw else max(1.0, outputs / inputs) ** 0.5
        return scale * orthogonalized(matrix)

    def _adam(self, gradient, state):
        beta1, beta2 = self._betas
        count = state["update_count"] + 1.0
        first = beta1 * state["first_moment"] + (1.0 - beta1) * gradient
        second = beta2 * state["second_moment"] + (1.0 - beta2) * gradient * gradient
        for name, value in (("update_count", count), ("first_moment", first), ("second_moment", second)):
            paddle.assign(value, output=state[name])
        unbiased = first / (1.0 - beta1**count), second / (1.0 - beta2**count)
        return unbiased[0] / (unbiased[1].sqrt() + self._eps)
