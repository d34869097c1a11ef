"""Two optimizers, each with parameters of its own, step after one backward."""

from scripted import Scripted, heard, parents

from opto.optimizers import OptoPrime
from opto.trace import bundle, node
from opto.trace.nodes import ParameterNode

planner = ParameterNode("walk", name="planner", trainable=True, description="A plan")
actor = ParameterNode(2, name="actor", trainable=True)


@bundle("[act] Carry out a plan.", allow_external_dependencies=False)
def act(plan, times=2, *rest, loud=False):
    return " ".join([plan] * times)


outcome = act(planner, actor)
print(outcome.data, parents(outcome), sorted(outcome.inputs))
first = OptoPrime([planner], llm=Scripted({"str": "run"}), include_example=False)
second = OptoPrime([actor], llm=Scripted({"int": 3}), prompt_symbols={"others": "#Between"})
first.zero_feedback()
second.zero_feedback()
first.backward(outcome, "go further", retain_graph=True)
print(heard(planner), heard(actor))
first.step()
second.step()
print(planner.data, actor.data)
print(act(planner, actor).data)
