"""A checkpoint in 8 bit, saved and loaded again, in ten lines."""

import tempfile

from transformers import AutoTokenizer

import llmint8
from llmint8.default_model import default_model

path = default_model()  # any folder, or a name on the Hugging Face hub
model = llmint8.from_pretrained(path, load_in_8bit=True)
tokenizer = AutoTokenizer.from_pretrained(path)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    model = llmint8.from_pretrained(folder)
chat = [{"role": "user", "content": "Name the three primary colours."}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
