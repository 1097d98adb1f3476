//! mesh-coordinator: admits nodes, stores and forwards their records.

fn main() -> std::process::ExitCode {
    meshd::coordinator::main()
}
