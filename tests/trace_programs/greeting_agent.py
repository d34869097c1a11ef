"""A prompt and two functions are learned together; the language model is asked as LiteLLM is."""

from scripted import Scripted, heard

import opto.trace as trace
from opto.optimizers import OptoPrime
from opto.trace import bundle, model, node
from opto.utils.llm import LLM  # noqa: F401  what an agent would ask


@model
class Agent:
    """It greets in the language of the question."""

    def __init__(self, system_prompt, llm):
        self.system_prompt = system_prompt
        self.instruct1 = trace.node("Name the language", trainable=True)
        self.instruct2 = trace.node("Find the name")
        self.llm = llm

    def __call__(self, question):
        response = trace.operators.concat(self.system_prompt, question)
        name = self.person(self.instruct2, question)
        return self.greet(self.instruct1, response, name)

    @bundle(trainable=True)
    def person(self, instruct, question):
        """Find who is speaking."""
        return question.split()[-1]

    @bundle()
    def greet(self, instruct, response, name):
        """Ask for a greeting."""
        messages = [{"role": "system", "content": instruct}, {"role": "user", "content": response}]
        said = self.llm(messages=messages).choices[0].message.content
        return f"{said}, {name}"


agent = Agent("Greet: ", Scripted("Hola", "Hola"))
print(sorted(str(p.data)[:20] for p in agent.parameters()))
answer = agent("I am Ada.")
print(answer.data, sorted(answer.inputs))
fixed = "def person(self, instruct, question):\n    return question.split()[-1].strip('.')"
llm = Scripted({"code": fixed, "str": "Say it in Spanish"})
optimizer = OptoPrime(agent.parameters(), llm=llm, ignore_extraction_error=True, max_tokens=500)
optimizer.zero_feedback()
optimizer.backward(answer, "no dot, please")
print([heard(p)[0] for p in agent.parameters()])
optimizer.step()
answer = agent("I am Ada.")
print(answer.data, agent.instruct1.data, agent.instruct2.trainable)
print([parent.data for parent in answer.parents if isinstance(parent.data, str)])
