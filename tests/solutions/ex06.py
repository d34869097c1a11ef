"""Exercise 6: parents first. Write a body, then run `python3 tutorial check 6`."""


def topological(outputs):
    """These nodes and all nodes that they were computed from, parents before children.

    `outputs` is a list of nodes; each node has a tuple `parents`. Each node comes once, no matter
    how many paths lead to it, and after all of its parents. Use a loop: a chain may be much longer
    than Python's recursion limit. A set or a dict tells nodes apart; `in` on a list does not, since
    `==` compares their values.

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
