"""Language models of one's own: made by a factory, by a property, and by a client with `create`."""

from types import SimpleNamespace

from scripted import heard, parents

from opto.optimizers import OptoPrime
from opto.trace import node
from opto.utils.llm import AbstractModel


def completion(text):
    message = SimpleNamespace(content=text, role="assistant")
    return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])


class Server:
    """A client as a company's own service has it."""

    def __init__(self, value):
        self.value, self.asked = value, 0

    def create(self, **config):
        self.asked += 1
        assert {"messages"} <= config.keys()
        return completion('{"reasoning": "as asked", "suggestion": {"level0": %d}}' % self.value)


class ByFactory(AbstractModel):
    def __init__(self, client, reset_freq=None):
        super().__init__(lambda: client.create, reset_freq)


class ByProperty(AbstractModel):
    def __init__(self, client):
        self.client = client
        super().__init__(factory=lambda: client, reset_freq=600)

    @property
    def model(self):
        return lambda *args, **kwargs: self.create(*args, **kwargs)

    def create(self, **config):
        return self.client.create(**config)


level = node(1, name="level", trainable=True)
for kind, value in (ByFactory, 4), (ByProperty, 6):
    client = Server(value)
    llm = kind(client)
    optimizer = OptoPrime([level], llm=llm)
    answer = llm(messages=[{"role": "user", "content": "Are you there?"}])
    print(answer.choices[0].message.content, client.asked)
    output = level * 10
    optimizer.zero_feedback()
    optimizer.backward(output, f"{output.data} is too low", retain_graph=False)
    print(parents(output), heard(level))
    optimizer.step()
    print(kind.__name__, level.data, client.asked, isinstance(llm, AbstractModel))
