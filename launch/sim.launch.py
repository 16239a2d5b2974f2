"""A simulated arm on Isaac Sim's topics, with the policy node and the controller node on it.

    ros2 launch cosmos3_ros sim.launch.py
    ros2 topic pub --once -w 2 /instruction std_msgs/msg/String "{data: touch the red cube}" \\
        --qos-durability transient_local

It waits for two who listen, the controller node and the policy node, which has to warm up first.
Other arguments of policy.launch.py are taken too.
"""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    SetEnvironmentVariable,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "cosmos3_ros"


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` asks for."""
    arguments = [
        DeclareLaunchArgument(
            "bundle",
            default_value=PathJoinSubstitution([FindPackageShare(PACKAGE), "engines", "pico"]),
            description="Folder of the bundle.",
        ),
        DeclareLaunchArgument(
            "embodiment", default_value="pico_panda", description="Embodiment name or file."
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Of all three nodes."),
        DeclareLaunchArgument(
            "use_sim_time", default_value="true", description="Follow the simulator's /clock."
        ),
        DeclareLaunchArgument(
            "plan_rate_hz",
            default_value="2.0",
            description="At most so many plans a simulated second; pico hesitates with more; 0.0: "
            "whenever free.",
        ),
        DeclareLaunchArgument("seed", default_value="0", description="Of the scenes."),
        DeclareLaunchArgument(
            "real_time_factor",
            default_value="1.0",
            description="Simulated seconds a second; 0.0: as fast as it can.",
        ),
        DeclareLaunchArgument(
            "mujoco_gl",
            default_value=EnvironmentVariable("MUJOCO_GL", default_value="egl"),
            description="What MuJoCo renders with: egl, osmesa or glfw.",
        ),
    ]
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare(PACKAGE), "launch", "policy.launch.py"])
        ),
        launch_arguments=[
            (name, LaunchConfiguration(name))
            for name in ("bundle", "embodiment", "namespace", "use_sim_time", "plan_rate_hz")
        ],
    )
    simulator = Node(
        package=PACKAGE,
        executable="sim_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "seed": ParameterValue(LaunchConfiguration("seed"), value_type=int),
                "real_time_factor": ParameterValue(
                    LaunchConfiguration("real_time_factor"), value_type=float
                ),
            }
        ],
        output="screen",
    )
    # The included launch file comes first: it sets the DDS profile that the simulator needs too.
    return LaunchDescription(
        [
            *arguments,
            SetEnvironmentVariable("MUJOCO_GL", LaunchConfiguration("mujoco_gl")),
            policy,
            simulator,
        ]
    )
