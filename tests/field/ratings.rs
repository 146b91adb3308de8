//! Rating tables as people have them.
