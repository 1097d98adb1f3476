//! meshd: the daemon that runs on every server.

fn main() -> std::process::ExitCode {
    meshd::node::main()
}
