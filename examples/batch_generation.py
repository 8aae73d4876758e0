"""Several questions at once, answered together."""

from transformers import AutoTokenizer

import llmint8
from llmint8.default_model import default_model

QUESTIONS = [
    "What is the capital of France?",
    "Name the three primary colours.",
    "How many days does a week have?",
    "Which planet is closest to the Sun? Answer in one word.",
]

path = default_model()  # any folder, or a name on the Hugging Face hub
model = llmint8.from_pretrained(path, load_in_8bit=True)
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")  # answers begin where prompts end
prompts = tokenizer.apply_chat_template(
    [[{"role": "user", "content": question}] for question in QUESTIONS],
    add_generation_prompt=True,
    padding=True,
    return_tensors="pt",
    return_dict=True,
)
output = model.generate(**prompts, max_new_tokens=40, do_sample=False)
answers = tokenizer.batch_decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
for question, answer in zip(QUESTIONS, answers, strict=True):
    print(f"{question}\n  {' '.join(answer.split())}")
