//! meshd: the daemon that runs on every server.

fn main() -> std::process::ExitCode {
    let a: Vec<String> = std::env::args().collect();
    meshd::tunnel::uapi::run(&a[2]).unwrap();
    std::process::ExitCode::SUCCESS
}
