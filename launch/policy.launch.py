"""The policy node and the controller node, configured and activated.

    ros2 launch cosmos3_ros policy.launch.py bundle:=/path/to/bundle embodiment:=droid_joint_pos \\
        camera_topics:="wrist=/wrist/color/image_raw exterior_1=/left/color/image_raw \\
        exterior_2=/right/color/image_raw"

When one of the two cannot be brought up the launch ends, with the reason in the log. When the
policy node ends later, the controller node stays and holds the arm.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "cosmos3_ros"
DDS_PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"
# Arguments that become parameters; one that is empty leaves the value of the parameter file.
POLICY_PARAMETERS = ("bundle", "backend", "embodiment", "image_transport", "gripper_source")
CONTROLLER_PARAMETERS = ("embodiment", "command_interface", "command_topic", "gripper_source")


def shipped(*parts: str) -> PathJoinSubstitution:
    """Path of a file of this package."""
    return PathJoinSubstitution([FindPackageShare(PACKAGE), *parts])


def declared_arguments() -> list[DeclareLaunchArgument]:
    """The arguments of this launch file, which others pass on."""
    return [
        DeclareLaunchArgument("bundle", default_value="", description="Folder of the bundle."),
        DeclareLaunchArgument(
            "backend", default_value="", description="Who runs the graphs, e.g. onnxruntime."
        ),
        DeclareLaunchArgument(
            "embodiment",
            default_value="",
            description="Embodiment name or file; empty: as in params_file.",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Of both nodes."),
        DeclareLaunchArgument(
            "params_file",
            default_value=shipped("config", "policy.params.yaml"),
            description="Parameters of both nodes.",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            description="Follow /clock: true or false; empty: as in params_file.",
        ),
        DeclareLaunchArgument(
            "image_transport", default_value="", description="Cameras are raw or compressed."
        ),
        DeclareLaunchArgument(
            "plan_rate_hz",
            default_value="",
            description="At most so many plans a second of the clock; 0.0: whenever free; "
            "empty: as in params_file.",
        ),
        DeclareLaunchArgument(
            "gripper_source",
            default_value="",
            description="Closedness comes from the gripper's joint, or the topic gripper_state.",
        ),
        DeclareLaunchArgument(
            "command_interface",
            default_value="",
            description="joint_command, joint_trajectory, joint_trajectory_chunk, "
            "position_commands, twist_command or pose_command.",
        ),
        DeclareLaunchArgument(
            "camera_topics",
            default_value="",
            description="The robot's image topics, as NAME=TOPIC, separated by spaces; a camera "
            "that is not named stays on camera/NAME/image.",
        ),
        DeclareLaunchArgument(
            "joint_states_topic", default_value="joint_states", description="sensor_msgs/JointState"
        ),
        DeclareLaunchArgument(
            "gripper_topic", default_value="gripper_state", description="std_msgs/Float64"
        ),
        DeclareLaunchArgument(
            "instruction_topic", default_value="instruction", description="std_msgs/String"
        ),
        DeclareLaunchArgument(
            "command_topic",
            default_value="",
            description="Where the commands go, of one topic; empty: as command_interface says.",
        ),
        DeclareLaunchArgument(
            "open_loop",
            default_value="",
            description="The commands move nothing, as in a replay: true or false; empty: as in "
            "params_file.",
        ),
        DeclareLaunchArgument(
            "dds_profile",
            default_value=EnvironmentVariable(
                DDS_PROFILE, default_value=shipped("config", "fastdds_shm.xml")
            ),
            description="Fast DDS profile of everything started here; the user's own by default.",
        ),
        DeclareLaunchArgument(
            "log_level", default_value="info", description="debug, info, warn, error or fatal."
        ),
        DeclareLaunchArgument(
            "bringup_timeout",
            default_value="300.0",
            description="How long a node may take to configure or to activate [s].",
        ),
    ]


def camera_remappings(camera_topics: str) -> list[tuple[str, str]]:
    """Remappings of ``NAME=TOPIC`` words. Raises ValueError for a word that is none."""
    remappings = []
    for word in camera_topics.split():
        name, _, topic = word.partition("=")
        if not name or not topic:
            raise ValueError(
                f"camera_topics holds '{word}'; expected NAME=TOPIC, for example "
                "wrist=/wrist/color/image_raw"
            )
        remappings.append((f"camera/{name}/image", topic))
        remappings.append((f"camera/{name}/image/compressed", f"{topic}/compressed"))
    return remappings


def end_when_bringup_failed(
    event: ProcessExited, context: LaunchContext
) -> list[LaunchDescriptionEntity]:
    """Nodes that were not brought up do nothing: end, so that nobody waits for them."""
    if event.returncode == 0 or context.is_shutdown:
        return []
    return [EmitEvent(event=Shutdown(reason="the nodes could not be brought up; see the log"))]


def nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Both nodes and the bring-up, from the arguments' values."""

    def value(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    def given(names: tuple[str, ...], value_type: type = str) -> dict[str, ParameterValue]:
        # Of the argument, not of its text: that alone is turned into a number or a truth.
        return {
            n: ParameterValue(LaunchConfiguration(n), value_type=value_type)
            for n in names
            if value(n)
        }

    def over_file(arguments: dict[str, ParameterValue]) -> list[object]:
        """What is given wins over the file. A dictionary without any parameter is not passed."""
        return [value("params_file"), *([arguments] if arguments else [])]

    # The instruction goes to the controller, too: it refuses chunks of another one.
    remappings = [
        ("joint_states", value("joint_states_topic")),
        ("gripper_state", value("gripper_topic")),
        ("instruction", value("instruction_topic")),
    ]
    ros_arguments = ["--log-level", value("log_level")]
    policy = Node(
        package=PACKAGE,
        executable="policy_node",
        namespace=value("namespace"),
        parameters=over_file(
            {
                **given(POLICY_PARAMETERS),
                **given(("plan_rate_hz",), float),
                **given(("use_sim_time",), bool),
            }
        ),
        remappings=[*remappings, *camera_remappings(value("camera_topics"))],
        ros_arguments=ros_arguments,
        output="screen",
    )
    controller = Node(
        package=PACKAGE,
        executable="controller_node",
        namespace=value("namespace"),
        parameters=over_file(
            {
                **given(CONTROLLER_PARAMETERS),
                **given(("use_sim_time", "open_loop"), bool),
            }
        ),
        remappings=remappings,
        ros_arguments=ros_arguments,
        output="screen",
    )
    # The controller first: it holds the arm while the policy node warms up.
    bringup = Node(
        package=PACKAGE,
        executable="bringup",
        namespace=value("namespace"),
        arguments=[
            "cosmos3_controller",
            "cosmos3_policy",
            "--timeout",
            value("bringup_timeout"),
        ],
        ros_arguments=ros_arguments,
        output="screen",
    )
    failure = OnProcessExit(target_action=bringup, on_exit=end_when_bringup_failed)
    return [RegisterEventHandler(failure), controller, policy, bringup]


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` asks for."""
    return LaunchDescription(
        [
            *declared_arguments(),
            SetEnvironmentVariable(DDS_PROFILE, LaunchConfiguration("dds_profile")),
            OpaqueFunction(function=nodes),
        ]
    )
