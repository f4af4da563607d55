"""Makes docs/_static/readme.png by running the README's first example: python docs/readme_picture.py"""

import os
import re
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

from matplotlib import pyplot as plt

docs = Path(__file__).parent
example = re.search(r"```python\n(.*?)```", (docs.parent / "README.md").read_text(), re.DOTALL).group(1)
exec(example)
plt.gca().set(xlabel="petal length (cm)", ylabel="petal width (cm)")
plt.savefig(docs / "_static" / "readme.png", dpi=110)
