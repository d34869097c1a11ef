"""Exercise 12: the best of k. Write a body, then run `python3 tutorial check 12`."""

from minitrace import ExecutionError, Optimizer, Proposal


class BestOf(Optimizer):
    """The best of another optimizer's proposals, or none if all of them make it worse.

    Args:
        other: an optimizer; `other.propose(n=k)` gives a list of k proposals.
        output: the node that was judged, from the last run of the program.
        score: a function from the data of an output to a number, higher is better.
        k: how many proposals to ask for.
    """

    def __init__(self, other, output, score, k=4):
        super().__init__(other.parameters)
        self.other, self.output, self.score, self.k = other, output, score, k

    def propose(self, n=None):
        """The best of k proposals of the other optimizer.

        Ask once, for all k. `self.output.rerun(proposal)` is the output as it would be with a
        proposal's values. A proposal whose rerun fails with an ExecutionError is left out. If no
        proposal scores higher than the present output, return an empty `Proposal()`.
        """
        best, most = Proposal(), self.score(self.output.data)
        for proposal in self.other.propose(n=self.k):
            try:
                score = self.score(self.output.rerun(proposal).data)
            except ExecutionError:
                continue
            if score > most:
                best, most = proposal, score
        return best
