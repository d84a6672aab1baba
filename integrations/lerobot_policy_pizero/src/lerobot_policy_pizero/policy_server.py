"""LeRobot's asynchronous policy server, for this policy too: python -m lerobot_policy_pizero.policy_server --host=...

LeRobot's own server knows a list of types and imports no plugins. It also shrinks each image to the size in the
policy's config.json, without keeping its shape; here images stay as the robot sent them.
"""

from __future__ import annotations

from lerobot.async_inference import constants, policy_server
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_policy_pizero.configuration_pizero import PizeroConfig
from lerobot_policy_pizero.modeling_pizero import PizeroPolicy


class PolicyServer(policy_server.PolicyServer):
    """Takes every policy that LeRobot's takes, and this one."""

    @property
    def policy_image_features(self) -> dict[str, PolicyFeature]:
        """For this policy in the sizes of the robot's cameras, so that nothing is resized before its own pipeline."""
        if not isinstance(self.policy, PizeroPolicy):
            return super().policy_image_features
        shapes = {key: feature["shape"] for key, feature in self.lerobot_features.items() if "image" in key}
        return {key: PolicyFeature(FeatureType.VISUAL, (shape[2], *shape[:2])) for key, shape in shapes.items()}


def allow() -> None:
    """Adds the policy's type to LeRobot's list of those that its server takes."""
    name = PizeroConfig.get_choice_name(PizeroConfig)
    if name not in constants.SUPPORTED_POLICIES:
        constants.SUPPORTED_POLICIES.append(name)


def main() -> None:
    register_third_party_plugins()
    allow()
    policy_server.PolicyServer = PolicyServer  # what `serve` makes
    policy_server.serve()


if __name__ == "__main__":
    main()
