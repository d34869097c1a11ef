"""Exercise 7: who is to blame? Write two bodies, then run `python3 tutorial check 7`."""

from minitrace import Propagator


class Blame(Propagator):
    """Feedback that is a share of the blame: 1.0 at the output, split on the way back.

    A node that has two children hears from both of them before it passes anything on.
    """

    def init_feedback(self, node, feedback):
        """At first, all the blame is on the output, no matter what was said."""
        return 1.0

    def aggregate(self, feedbacks):
        """What a node received in total: one number, from the list of what its children sent."""
        raise NotImplementedError

    def propagate(self, node, feedback):
        """What each of `node.parents` receives: an equal part of this node's blame, as a list.

        `backward` calls this for every node that it reaches, including roots. A root has no
        parents, so its list is empty.
        """
        raise NotImplementedError
