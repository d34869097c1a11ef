"""TextGrad with a language model that answers as TextGrad asks: in <IMPROVED_VARIABLE> tags."""

import re

from scripted import heard, parents
from types import SimpleNamespace

from opto.optimizers import TextGrad
from opto.trace import bundle, node

NEW = {
    "Be brief.": "Be brief, and kind.\nNever say never.",
    "You draw a circle.": "def area(r):\n    return 3.14 * r * r",
}


class Critic:
    """Criticizes, and improves what it knows."""

    def create(self, *args, messages, **options):
        page = "\n".join(message["content"] for message in messages)
        known = [new for old, new in NEW.items() if old in page]
        improving = "IMPROVED_VARIABLE" in page or re.search(r"\n# ?Variables\n", page)
        text = f"Here it is.\n<IMPROVED_VARIABLE>\n{known[0]}\n</IMPROVED_VARIABLE>" if improving else "Kinder, please."
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])

    __call__ = create


@bundle()
def reply(prompt, question):
    """What a language model says."""
    return f"<{prompt}> {question}"


for first in NEW:
    prompt = node(first, name="prompt", trainable=True, description="[prompt] The system prompt.")
    optimizer = TextGrad([prompt], llm=Critic(), max_tokens=200)
    output = reply(prompt, "How are you?")
    optimizer.zero_feedback()
    optimizer.backward(output, "It sounds rude.")
    print(parents(output), heard(prompt))
    optimizer.step(verbose=False)
    print(repr(prompt.data))
