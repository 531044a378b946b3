"""Client of upstream Petals, as text for a Python of its own environment; it knows nothing of this project.

Answers each line of JSON on standard input like `benchmarks.llama`.
"""

CLIENT = """
import json, sys, time
import torch
from petals import AutoDistributedModelForCausalLM

torch.set_num_threads(int(sys.argv[2]))
model = AutoDistributedModelForCausalLM.from_pretrained(sys.argv[1], dht_prefix="peers", torch_dtype=torch.float32)
model.generation_config.eos_token_id = None

class Times:
    def __init__(self):
        self.started, self.times, self.prompt = time.perf_counter(), [], True
    def put(self, value):
        if not self.prompt:
            self.times.append(time.perf_counter() - self.started)
        self.prompt = False
    def end(self):
        pass

print("ready: petals", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    prompt = torch.tensor([asked["ids"]])
    watch = Times()
    with torch.inference_mode():
        made = model.generate(prompt, max_new_tokens=asked["tokens"], do_sample=False, streamer=watch)
    print(json.dumps({"tokens": made[0, prompt.shape[1]:].tolist(), "times": watch.times}), flush=True)
"""
