"""An agent plays; what goes wrong in the world outside is a node made by hand."""

import contextlib
import io

import opto.trace as trace
from scripted import Scripted, heard, parents

from opto.optimizers import OptoPrime
from opto.trace import Module, bundle, node
from opto.trace.bundle import ExceptionNode
from opto.trace.errors import ExecutionError


class World:
    """A corridor; a step must be 1 or -1."""

    def __init__(self):
        self.place = 0

    @bundle()
    def reset(self):
        """Go back to the beginning."""
        self.place = 0
        return {"place": 0, "goal": 3}

    def step(self, action):
        try:
            control = action.data if isinstance(action, trace.Node) else action
            if control not in (1, -1):
                raise ValueError(f"no step is {control}")
            self.place += control
            view = {"place": self.place, "goal": 3}
        except Exception as e:
            e_node = ExceptionNode(
                e,
                inputs={"action": action},
                description="[exception] The operator step raises an exception.",
                name="exception_step",
            )
            raise ExecutionError(e_node)

        @bundle()
        def step(action):
            """Take a step and see the corridor."""
            return view

        return step(action), float(view["place"] == 3)


class Policy(Module):
    def __init__(self):
        self.eager = trace.node(True)

    @bundle(trainable=True)
    def act(self, view):
        """Choose a step."""
        return 2

    def __call__(self, view):
        return self.act(view)


policy, world = Policy(), World()
right = "def act(self, view):\n    return 1 if view['place'] < view['goal'] else -1"
optimizer = OptoPrime(policy.parameters(), config_list=[], memory_size=5, llm=Scripted({"code": right}))
for episode in range(2):
    view, error, reward = world.reset(), None, 0.0
    for _ in range(3):
        try:
            view, reward = world.step(policy(view))
        except trace.ExecutionError as e:
            error = e
            break
    if error is None:
        target, feedback = view, f"reward {reward}"
    else:
        target, feedback = error.exception_node, error.exception_node.create_feedback()
    print(episode, target.data, feedback, isinstance(target, trace.nodes.MessageNode))
    print(sorted(target.inputs), [type(each.data).__name__ for each in target.parents])
    instruction = "Walk to the goal. "
    optimizer.objective = instruction + optimizer.default_objective
    optimizer.zero_feedback()
    optimizer.backward(target, feedback, visualize=True)
    page = str(optimizer.problem_instance(optimizer.summarize()))
    print(instruction in page, "def act" in page, feedback in page)
    print(heard(policy.parameters()[0])[0])
    if error is None:
        break
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        optimizer.step(verbose="output")
    told = buffer.getvalue()
    print("view['goal']" in told, "Walk to the goal" in told, len(optimizer.log))
print(node(1).data, parents(view)[-1])
