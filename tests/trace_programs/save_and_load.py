"""What was learned is saved into folders that are not there yet, and read again."""

import os
import tempfile

from opto.trace import Module, bundle, model, node


@model
class Shop:
    def __init__(self, price):
        self.price = node(price, name="price", trainable=True)

    @bundle(trainable=True)
    def bill(self, count):
        """What so many cost."""
        return count * 2

    def forward(self, count):
        return self.bill(count) * self.price


@bundle(trainable=True)
def discount(total):
    """Take something off."""
    return total - 1


with tempfile.TemporaryDirectory() as folder:
    shop, other = Shop(5), Shop(7)
    path = os.path.join(folder, "checkpoints", "first", "shop.pkl")
    shop.save(path)
    other.load(path)
    print(other(3).data, other.price.data, len(other.parameters()))
    path = os.path.join(folder, "rules", "discount.pkl")
    discount.save(path)
    discount.parameter._data = "def discount(total):\n    return 0"
    print(discount(10).data)
    discount.load(path)
    print(discount(10).data, os.path.exists(path))
    print(isinstance(shop, Module), Shop.__name__ in ("Shop", "ModelWrapper"))
