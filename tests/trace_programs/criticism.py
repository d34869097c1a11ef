"""`node.backward` comes first, and TextGrad asks for criticism in its step."""

from scripted import Scripted, heard

from opto.optimizers import TextGrad
from opto.trace import bundle, node

word = node("Hello", name="word", trainable=True)


@bundle()
def greet(word, name):
    """Greet somebody."""
    return f"{word}, {name}!"


class Critic(Scripted):
    """Criticizes, and rewrites when it is asked to: in tags for Trace, else as JSON."""

    def __call__(self, *args, messages, **options):
        pages = " ".join(message["content"] for message in messages)
        if "IMPROVED_VARIABLE" in pages:
            self.answers = ["<IMPROVED_VARIABLE>Hi</IMPROVED_VARIABLE>"]
        elif "#Variables" in pages.replace("# ", "#"):
            self.answers = [{"str": "Hi"}]
        else:
            self.answers = ["Make it shorter."]
        return super().__call__(messages=messages)

    create = __call__


critic = Critic()
optimizer = TextGrad([word], llm=critic)
output = greet(word, "Ada")
optimizer.zero_feedback()
output.backward("too stiff")
print(output.data, heard(word), critic.calls)
optimizer.step()
print(word.data, critic.calls > 1)
print(greet(word, "Ada").data)
