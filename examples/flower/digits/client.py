"""What runs beside the data: one client, which reads the file that its operator names."""

from fedlearn.flower import client_app

from .recipe import examples, recipe_of


def load(context):
    """Flower's context -> the run's recipe, and this node's examples."""
    return recipe_of(context.run_config["method"]), *examples(context.node_config["data"])


app = client_app(load)
