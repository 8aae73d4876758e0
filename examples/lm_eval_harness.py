"""A model in 16 and in 8 bit through EleutherAI's evaluation harness, on a task of its own (`pip install lm-eval`)."""

import logging
import sys
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

import llmint8
from llmint8.default_model import default_model

# A question, the right answer, three wrong ones.
QUESTIONS = [
    ("What is the capital of France?", "Paris", "Madrid", "Rome", "Berlin"),
    ("What is the capital of Japan?", "Tokyo", "Beijing", "Seoul", "Bangkok"),
    ("Which planet is closest to the Sun?", "Mercury", "Mars", "Jupiter", "Saturn"),
    ("Which gas do plants take in from the air to make sugar?", "carbon dioxide", "helium", "nitrogen", "argon"),
    ("What is the chemical symbol of gold?", "Au", "Ag", "Fe", "Pb"),
    ("How many days does a week have?", "seven", "five", "nine", "ten"),
    ("Which animal barks?", "the dog", "the cow", "the duck", "the horse"),
    ("Who wrote Romeo and Juliet?", "William Shakespeare", "Charles Dickens", "Jane Austen", "Mark Twain"),
    ("What do bees make?", "honey", "milk", "silk", "butter"),
    ("At what temperature does water boil at sea level?", "100 degrees Celsius", "50 degrees Celsius",
     "10 degrees Celsius", "500 degrees Celsius"),
    ("Which organ pumps blood through the body?", "the heart", "the liver", "the lung", "the stomach"),
    ("What is the largest ocean on Earth?", "the Pacific Ocean", "the Arctic Ocean", "the Indian Ocean",
     "the Atlantic Ocean"),
    ("On which continent is Egypt?", "Africa", "Europe", "South America", "Australia"),
    ("What is frozen water called?", "ice", "steam", "sand", "salt"),
    ("Which force keeps the planets in their orbits?", "gravity", "friction", "magnetism", "air resistance"),
    ("What is the opposite of hot?", "cold", "tall", "loud", "heavy"),
    ("Which language is spoken in Brazil?", "Portuguese", "Dutch", "Japanese", "Russian"),
    ("Who developed the theory of relativity?", "Albert Einstein", "Isaac Newton", "Charles Darwin", "Galileo Galilei"),
    ("How many sides does a triangle have?", "three", "four", "six", "eight"),
    ("Which season comes after winter?", "spring", "autumn", "summer", "winter again"),
]  # fmt: skip
TASK = "general_knowledge"


def documents(**_: Any) -> dict[str, Any]:
    """Returns the questions as the harness wants them: a split with `question`, `choices` and the `label` in them."""
    from datasets import Dataset

    rows = []
    for index, (question, right, *choices) in enumerate(QUESTIONS):
        label = index % (len(choices) + 1)  # so that always naming the first choice is right in a quarter
        choices.insert(label, right)
        rows.append({"question": question, "choices": choices, "label": label})
    return {"test": Dataset.from_list(rows)}


def task() -> dict[str, Any]:
    """Returns the task: the choice whose text the model finds most likely after the question."""
    return {
        "task": TASK,
        "custom_dataset": documents,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }


def evaluate(model: torch.nn.Module, tokenizer: Any, batch_size: int = 8) -> dict[str, float]:
    """Evaluates a model on the task.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer.
        batch_size: Sequences of one forward pass.

    Returns:
        `"acc"` and `"acc_norm"`, the share of right answers by the likelihood of a choice and by that per byte.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    result = lm_eval.simple_evaluate(harness, tasks=[task()], bootstrap_iters=0)["results"][TASK]
    return {metric: result[f"{metric},none"] for metric in ("acc", "acc_norm")}


def main() -> None:
    """Runs the example."""
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("this example needs the evaluation harness: pip install lm-eval")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is given as an object
    path = default_model()
    tokenizer = AutoTokenizer.from_pretrained(path)
    print(f"{path.name}, {len(QUESTIONS)} questions; one more right answer is {1 / len(QUESTIONS):.2f}")
    for name, in_8bit in (("16 bit", False), ("8 bit", True)):
        model = llmint8.from_pretrained(path, load_in_8bit=in_8bit, dtype=torch.bfloat16)
        metrics = evaluate(model, tokenizer)
        print(f"{name:>6}: " + ", ".join(f"{metric} {value:.2f}" for metric, value in metrics.items()))


if __name__ == "__main__":
    main()
