from common import load_texts
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class BenchmarkModel(MLModel):
    async def load(self):
        self.work = load_texts()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        data = payload.inputs[0].data
        answers = self.work(list(getattr(data, "root", data)))
        output = ResponseOutput(
            name="answer", shape=[len(answers), 1], datatype="BYTES", data=answers
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
