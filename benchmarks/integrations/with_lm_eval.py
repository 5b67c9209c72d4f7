"""lm-evaluation-harness: a task of one's own, offline, on a pruned folder and on a live object."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from steps import Steps

TASKS = {
    "local_text": """\
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
metadata: {version: 1.0}
""",
    "local_choice": """\
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}} The capital of {{country}} is"
doc_to_choice: "{{cities}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
""",
}
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo",
            "Spain": "Madrid", "Germany": "Berlin", "Greece": "Athens", "Peru": "Lima"}  # fmt: skip


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    tasks = _tasks(steps.work / "tasks")
    small = steps.prune("--target", "blocks=80%", "--format", "hf")
    names = ",".join(TASKS)
    found = {}
    for name, folder in (("dense", steps.model), ("folder", small / "hf")):
        steps.run(
            "lm_eval", "run", "--model", "hf", "--model_args",
            f"pretrained={folder},dtype=float32", "--tasks", names, "--include_path", "tasks",
            "--device", "cpu", "--batch_size", "4", "--output_path", f"{name}.json",
        )  # fmt: skip
        (written,) = steps.work.glob(f"**/{name}*.json")
        found[name] = _figures(json.loads(written.read_text()))
    found["live object"] = _figures(_live(steps.model, tasks))
    if found["live object"] != found["folder"]:
        raise SystemExit(f"the folder and the live object differ: {found}")
    steps.tell(("lm_eval", "transformers", "torch", "datasets"), results=found)


def _tasks(folder: Path) -> Path:
    """The tasks and their data: one document for each capital."""
    folder.mkdir()
    cities = list(CAPITALS.values())
    lines = [
        {
            "text": f"{country} is a country, and {city} is its largest city.",
            "country": country,
            "cities": [f" {other}" for other in cities],
            "answer": cities.index(city),
        }
        for country, city in CAPITALS.items()
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    return folder


def _live(model: Path, tasks: Path) -> Any:
    """A model that was pruned in this process, and never saved."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    import prunec

    small = prunec.load(model).prune(target="blocks=80%", method="magnitude", calibration="none")
    tokenizer = AutoTokenizer.from_pretrained(model)
    live = HFLM(pretrained=small.module.float(), tokenizer=tokenizer, device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(tasks))
    return lm_eval.simple_evaluate(model=live, tasks=list(TASKS), task_manager=manager)


def _figures(found: Any) -> dict[str, float]:
    return {
        f"{task}: {name.removesuffix(',none')}": round(value, 6)
        for task, values in found["results"].items()
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
