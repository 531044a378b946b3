"""lm-eval: a task of its own out of a local file, through `local-completions`."""

import json
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

folder = Path.cwd()
rows = [
    {"question": "The capital of France is", "answer": "Paris"},
    {"question": "The capital of Italy is", "answer": "Rome"},
    {"question": "The capital of Germany is", "answer": "Berlin"},
]
(folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
(folder / "capitals.yaml").write_text(f"""
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {json.dumps(str(folder / "rows.jsonl"))}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 8, do_sample: false, temperature: 0}}
metric_list:
  - metric: exact_match
    ignore_case: true
    regexes_to_ignore: ["^ +", "[,;].*$"]
""")
url = f"{os.environ['OPENAI_BASE_URL']}/completions"
arguments = (
    f"model={os.environ['MODEL']},base_url={url},num_concurrent=1,tokenizer_backend=None,tokenized_requests=False"
)
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args=arguments,
    tasks=["capitals"],
    task_manager=TaskManager(include_path=str(folder)),
    bootstrap_iters=0,
)
score = found["results"]["capitals"]["exact_match,none"]
assert score > 0.5, found["samples"]
print(f"exact match {score:.2f} of {len(rows)}")
