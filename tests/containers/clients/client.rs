//! Looks a name up, connects, and prints what the server calls it. To be linked statically.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let stream = TcpStream::connect(words.join(":"))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}
