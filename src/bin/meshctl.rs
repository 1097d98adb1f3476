//! meshctl. Called by the name of another program, as the demo does, it is that program.

fn main() -> std::process::ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    match std::path::Path::new(&name)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("meshd") => meshd::node::main(),
        Some("mesh-coordinator") => meshd::coordinator::main(),
        _ => meshd::cli::main([meshd::node::command(), meshd::coordinator::command()]),
    }
}
