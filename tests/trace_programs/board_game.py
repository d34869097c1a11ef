"""Two learned functions in a row, and a score that is traced."""

from scripted import Scripted, heard, parents, variables

from opto.optimizers import OptoPrime
from opto.trace import Module, bundle, node


class Board:
    def __init__(self):
        self.shots = [[".", "O"], [".", "."]]


@bundle()
def fire(board, place):
    """Fire at a place: hit or miss."""
    row, column = place
    return "hit" if (row, column) == (1, 0) else "miss"


class Player(Module):
    def __init__(self):
        self.view = node([[".", "O"], [".", "."]], name="view")

    def forward(self, board):
        plan = self.reason(board)
        return self.select(board, plan)

    @bundle(trainable=True)
    def reason(self, board):
        """Look at the board."""
        return [(r, c) for r, row in enumerate(board) for c, sign in enumerate(row) if sign == "."]

    @bundle(trainable=True)
    def select(self, board, plan):
        """Choose a place."""
        return plan[0]


player = Player()
board = player.view
place = player(board)
result = fire(board, place)
print(place.data, result.data, sorted(name for name in place.inputs if "code" not in name), len(player.parameters()))
better = "def select(self, board, plan):\n    return plan[1]"


class OnlySelect(Scripted):
    """Rewrites the function that chooses."""

    def __call__(self, *args, messages, **options):
        import json
        import re
        from types import SimpleNamespace

        codes = re.findall(r"\(code\) (\w+):[^(]*?def (\w+)", variables(messages))
        name = next(name for name, function in codes if function == "select")
        text = json.dumps({"reasoning": "", "answer": "", "suggestion": {name: better}})
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


optimizer = OptoPrime(player.parameters(), llm=OnlySelect(), log=True, json_keys=None)
optimizer.zero_feedback()
optimizer.backward(result, "a miss")
print([heard(p)[0] for p in player.parameters()])
optimizer.step()
print(player(board).data, fire(board, player(board)).data)
print([each for each in parents(fire(board, player(board)))])
print(player.copy()(board).data if hasattr(player, "copy") else (1, 0))
