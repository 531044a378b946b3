"""lm-eval: tasks of its own out of a local file through `local-completions` and `local-chat-completions`.

Generation by text alone, and what needs log-probabilities of a prompt with the gateway's own tokenizer, so that neither
transformers nor the model's files are needed where it runs.
"""

import json
import math
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
common = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {json.dumps(str(folder / "rows.jsonl"))}}}
test_split: test
"""
(folder / "written.yaml").write_text(f"""
task: written
{common}
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 8, do_sample: false, temperature: 0}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    regexes_to_ignore: ["^ +", "[,;].*$"]
""")
(folder / "chosen.yaml").write_text(f"""
task: chosen
{common}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [Paris, Rome, Berlin]
doc_to_target: "{{{{answer}}}}"
""")
(folder / "read.yaml").write_text(f"""
task: read
{common}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{answer}}}}"
metric_list:
  - {{metric: word_perplexity}}
""")
model, base = os.environ["MODEL"], os.environ["OPENAI_BASE_URL"]


def results(kind: str, url: str, tasks: list[str], **options: object) -> dict[str, dict[str, float]]:
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args={"model": model, "base_url": url, "max_length": 2048, **options},
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
        apply_chat_template=kind.endswith("chat-completions"),
    )
    return {name: found["results"][name] for name in tasks}


plain = {"tokenizer_backend": None, "tokenized_requests": False}
written = results("local-completions", f"{base}/completions", ["written"], **plain)["written"]["exact_match,none"]
assert written > 0.5
with_ids = results("local-completions", f"{base}/completions", ["written", "chosen", "read"], num_concurrent=3)
assert with_ids["written"]["exact_match,none"] == written
assert with_ids["chosen"]["acc,none"] > 0.5
assert 1 < with_ids["read"]["word_perplexity,none"] < math.inf
chatted = results("local-chat-completions", f"{base}/chat/completions", ["written"], **plain)
assert "exact_match,none" in chatted["written"]
print(f"written {written:.2f}, chosen {with_ids['chosen']['acc,none']:.2f} of {len(rows)}")
