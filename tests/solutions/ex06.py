"""Exercise 6: parents first. Write a body, then `python3 tutorial check 6`."""


def topological(outputs):
    """All nodes that some nodes were computed from, and these themselves, parents before children.

    `outputs` is a list of nodes; each node has a tuple `parents`. Each node comes once, however
    many ways lead to it, and after all of its parents. Write it with a loop: a chain may be far
    longer than Python lets a function call itself. A set or a dict tells nodes apart; `in` on a
    list does not, since `==` compares their values.

    Returns: a list of nodes.
    """
    order, seen = [], set()
    stack = [(node, False) for node in reversed(outputs)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(parent, False) for parent in node.parents]
    return order
