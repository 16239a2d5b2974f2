"""A bag into the policy node and the controller node, what they say into another bag.

    ros2 launch cosmos3_ros replay.launch.py bag:=run.mcap bundle:=/path/to/bundle \\
        embodiment:=droid_joint_pos out:=output.mcap

It ends with the bag. Other arguments of policy.launch.py are taken too. ``cosmos3 replay`` does the
same without launch, and writes a summary.
"""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "cosmos3_ros"
RECORDED = [
    "action_chunk:cosmos3_ros/msg/ActionChunk",
    "status:cosmos3_ros/msg/PolicyStatus",
    "predicted_frame:sensor_msgs/msg/Image",
    "controller_status:cosmos3_ros/msg/ControllerStatus",
    "joint_command:sensor_msgs/msg/JointState",
    "joint_states:sensor_msgs/msg/JointState",
    "instruction:std_msgs/msg/String",
    "/diagnostics:diagnostic_msgs/msg/DiagnosticArray",
]


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` asks for."""
    arguments = [
        DeclareLaunchArgument("bag", description="Bag to play: a folder, .mcap or .db3 file."),
        DeclareLaunchArgument("bundle", description="Folder of the bundle."),
        DeclareLaunchArgument("out", default_value="output.mcap", description="Bag to write."),
        DeclareLaunchArgument("rate", default_value="1.0", description="Pace, 1.0 as recorded."),
        DeclareLaunchArgument(
            "instruction", default_value="", description="Instead of what the bag holds."
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Of all nodes."),
        DeclareLaunchArgument(
            "use_sim_time", default_value="true", description="Follow the bag's /clock."
        ),
    ]
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare(PACKAGE), "launch", "policy.launch.py"])
        ),
        launch_arguments=[
            *(
                (name, LaunchConfiguration(name))
                for name in ("bundle", "namespace", "use_sim_time")
            ),
            ("open_loop", "true"),
        ],
    )
    recorder = Node(
        package=PACKAGE,
        executable="recorder_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "output": ParameterValue(LaunchConfiguration("out"), value_type=str),
                "topics": RECORDED,
            }
        ],
        output="screen",
    )
    player = Node(
        package=PACKAGE,
        executable="player_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "bag": ParameterValue(LaunchConfiguration("bag"), value_type=str),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
                "instruction": ParameterValue(LaunchConfiguration("instruction"), value_type=str),
                # The nodes are being brought up meanwhile: the player waits until they listen.
                "match_timeout_s": 300.0,
            }
        ],
        output="screen",
    )
    end = OnProcessExit(
        target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the player has ended"))]
    )
    # The included launch file comes first: it sets the DDS profile that the others need too.
    return LaunchDescription([*arguments, policy, recorder, RegisterEventHandler(end), player])
