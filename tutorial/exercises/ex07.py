"""Exercise 7: who is to blame? Write two bodies, then `python3 tutorial check 7`."""

from minitrace import Propagator


class Blame(Propagator):
    """Feedback that is a share of the blame: 1.0 at the output, split on the way back.

    A node that has two children hears from both before it is its turn to pass on.
    """

    def init_feedback(self, node, feedback):
        """All the blame is on the output to begin with, whatever was said."""
        return 1.0

    def aggregate(self, feedbacks):
        """What a node received in all: one number from the list of what its children sent."""
        raise NotImplementedError

    def propagate(self, node, feedback):
        """What each of `node.parents` receives: equal parts of this node's blame, as a list.

        `backward` asks every node that it reaches, roots as well. A root has no parents, so its
        list is empty.
        """
        raise NotImplementedError
