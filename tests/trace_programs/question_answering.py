"""Questions of two hops: a search, a recursive count, an answer; what is asked is logged."""

import opto.trace.operators as ops
from scripted import Scripted, heard, parents

from opto import trace
from opto.optimizers import OptoPrime
from opto.trace import ExecutionError, bundle, node

PASSAGES = {
    "ada": "Ada Lovelace wrote notes on the Analytical Engine.",
    "engine": "The Analytical Engine was designed by Charles Babbage.",
}


@bundle()
def search(query, k=2):
    """Find up to k passages."""
    return [text for word, text in PASSAGES.items() if word in query.lower()][:k]


@bundle("[count_words] Count the words, one after the other.", overwrite_python_recursion=True)
def count_words(words):
    return 0 if not words else 1 + count_words(words[1:])


@bundle("[answer] Answer the question from the passages.")
def answer(prompt, passages, question):
    if len(passages) < 2:
        raise ValueError(f"too little found for {question!r}")
    return f"{prompt}|{passages[-1]}|{question}"


class TwoHops(trace.Module):
    def __init__(self, llm):
        self.hop = node("Find: {question}", name="hop", trainable=True)
        self.final = node("Answer in a sentence.", name="final", trainable=True)
        self.optimizer = OptoPrime([self.hop, self.final], llm=llm, memory_size=0)

    def forward(self, question):
        question = node(question, name="question")
        query = self.hop.format(question=question)
        first = search(query)
        second = search(query + " and the engine", k=1)
        return answer(self.final, ops.concat(first, second), question)


program = TwoHops(Scripted('{"reasoning": "shorter", "suggestion": {"final0": "Answer in a word."}}', '{"suggestion": {}}'))
optimizer = program.optimizer
optimizer.objective = "Answer well. " + optimizer.default_objective
for question in "Who knew Ada?", "Who is Bob?":
    try:
        output = program(question)
        feedback = "The answer should be a name."
        print(count_words(output.data.split()).data)
    except ExecutionError as error:
        output, feedback = error.exception_node, error.exception_node.create_feedback()
    print(output.data, parents(output))
    optimizer.zero_feedback()
    optimizer.backward(output, feedback)
    print(heard(program.hop), heard(program.final)[0])
    summary = optimizer.summarize()
    system, user = optimizer.construct_prompt(summary)
    print(isinstance(system, str), "Answer well." in user, feedback in user, summary.user_feedback == feedback)
    optimizer.step()
    print(program.hop.data, program.final.data, [feedback in entry["user_prompt"] for entry in optimizer.log])
