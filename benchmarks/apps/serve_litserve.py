import litserve
from common import BATCH_SIZE, CHUNKS, DELAY_S, PORT, TASK, WORKERS, load_texts


class Api(litserve.LitAPI):
    def setup(self, device):
        self.work = load_texts()

    def decode_request(self, request):
        return request["data"]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, data):
        if isinstance(data, list):
            return self.work(data)
        return self.work([data])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"data": output}


class StreamApi(Api):
    def predict(self, data):
        for chunk in CHUNKS:
            yield chunk.decode()

    def encode_response(self, output):
        yield from output


if __name__ == "__main__":
    options = {"max_batch_size": BATCH_SIZE, "batch_timeout": DELAY_S} if BATCH_SIZE > 1 else {}
    api = StreamApi(stream=True) if TASK == "stream" else Api(**options)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=WORKERS, timeout=60, fast_queue=False
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
