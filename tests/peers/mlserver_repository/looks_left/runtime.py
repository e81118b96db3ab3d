"""A classifier for MLServer, in numpy: class 1 where there is a checkerboard on the left, as `known_models` has it.

It takes channels first or last.
"""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

SIZE, TOP, LEFT, BOTTOM, RIGHT, GAIN = 56, 8, 8, 24, 24, 10.0


class LooksLeft(MLModel):
    async def load(self) -> bool:
        index = np.arange(SIZE)
        board = (index[None] + index[:, None]) % 2 * 2.0 - 1
        weight = np.zeros((SIZE, SIZE))
        weight[TOP:BOTTOM, LEFT:RIGHT] = board[TOP:BOTTOM, LEFT:RIGHT]
        self._weight = weight / np.abs(weight).sum()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = NumpyCodec.decode_input(payload.inputs[0])
        if images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        found = (images.mean(1) * self._weight).sum((1, 2))
        scores = np.stack([np.zeros_like(found), GAIN * (found - 0.5)], 1).astype(np.float32)
        outputs = [NumpyCodec.encode_output("scores", scores)]
        return InferenceResponse(model_name=self.name, model_version="v3", outputs=outputs)
