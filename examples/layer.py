"""Switchable Normalization in a network of your own: python examples/layer.py

Prints the accuracy on handwritten digits and, for each layer, the weights that it learned for
instance, layer and batch statistics.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sn_imagenet.norms import SwitchNorm2d

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8]
labels = torch.tensor(digits.target)
network = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), SwitchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), SwitchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
for _ in range(100):
    batch = torch.randint(0, 1400, (32,))
    loss = F.cross_entropy(network(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

network.eval()  # BN's statistics are now the moving averages, as with nn.BatchNorm2d
with torch.no_grad():
    correct = (network(images[1400:]).argmax(1) == labels[1400:]).float().mean()
print(f"accuracy {100 * correct:.1f} %")
for layer in network:
    if isinstance(layer, SwitchNorm2d):
        weights = layer.mean_weight.softmax(0).tolist()
        print(", ".join(f"{m} {w:.2f}" for m, w in zip(layer.omega, weights, strict=True)))
