//! A guest goes round all servers while it runs, and each move is measured.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::guests::{ROAMER, Watch};
use super::servers::Servers;

/// What is heard after a move, for its end to be in it.
const AFTER: usize = 60;

/// What one move was like.
struct Moved {
    way: String,
    total: Duration,
    gap: Duration,
    lost: u64,
    answer: Duration,
}

/// To the next server, and the next, and home. `storage` says where the disk is to be:
/// none when it stays where it is.
pub fn round(
    servers: &Servers,
    watch: &mut Watch,
    storage: impl Fn(usize, bool) -> Option<String>,
) -> Result<()> {
    let home = servers.of(ROAMER)?;
    let count = servers.all.len();
    let mut moves = Vec::new();
    for n in 1..=count {
        let to = (home + n) % count;
        moves.push(go(servers, watch, to, storage(to, n == count))?);
    }
    println!("\n{}", table(&moves));
    Ok(())
}

fn go(servers: &Servers, watch: &mut Watch, to: usize, storage: Option<String>) -> Result<Moved> {
    let (from, name) = (servers.of(ROAMER)?, servers.all[to].name);
    watch.ticks.wait(AFTER)?;
    watch.answers.longest()?;
    let mark = watch.ticks.mark();
    let mut args = vec!["vm", "migrate", ROAMER, "--to", name];
    args.extend(storage.iter().flat_map(|storage| ["--storage", storage]));
    let begin = Instant::now();
    servers.first().basin(&args)?;
    let total = begin.elapsed();
    watch.ticks.wait(AFTER)?;
    let told = watch.ticks.since(mark)?;
    let answer = watch.answers.longest()?;
    if servers.of(ROAMER)? != to {
        bail!(
            "expected '{ROAMER}' on {name}, but it is on {}",
            servers.all[servers.of(ROAMER)?].name
        );
    }
    let way = format!("{} -> {name}", servers.all[from].name);
    Ok(Moved { way, total, gap: told.longest_gap, lost: told.lost, answer })
}

fn table(moves: &[Moved]) -> String {
    let ms = |time: Duration| format!("{} ms", time.as_millis());
    let mut text = line(["move", "total", "longest gap", "ticks lost", "longest TCP answer"]);
    for m in moves {
        let lost = m.lost.to_string();
        text += &line([&m.way, &ms(m.total), &ms(m.gap), &lost, &ms(m.answer)]);
    }
    text
}

fn line([way, total, gap, lost, answer]: [&str; 5]) -> String {
    format!("    {way:<14}{total:>10}{gap:>14}{lost:>13}{answer:>21}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_lines_of_a_table() {
        let ms = Duration::from_millis;
        let way = "srv1 -> srv2".to_owned();
        let moved = Moved { way, total: ms(1912), gap: ms(41), lost: 7, answer: ms(55) };
        let text = table(&[moved]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].len(), lines[1].len());
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "srv1 -> srv2 1912 ms 41 ms 7 55 ms"
        );
    }
}
