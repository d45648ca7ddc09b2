//! A program at work: what it says is shown as it comes, and waited for.

use std::io::{PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stop::Stop;

/// No command of the demo takes longer, and one that does hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// Between two looks at whether somebody wants to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Enough of a line to see what it is.
const WIDTH: usize = 160;

fn read(mut reader: PipeReader) -> Receiver<Vec<u8>> {
    let (tell, hear) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            if tell.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    hear
}

/// A program at work. Dropped, it is killed.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    chunks: Receiver<Vec<u8>>,
    said: Said,
    shown: usize,
    mark: &'static str,
    silent: bool,
    stop: Stop,
}

/// What a program said.
#[derive(Default)]
pub struct Said {
    name: String,
    text: String,
}

impl Said {
    pub fn expect(&self, text: &str) -> Result<()> {
        if self.text.contains(text) {
            return Ok(());
        }
        bail!("`{}`: expected '{text}', but it said:\n{}", self.name, self.text.trim_end())
    }

    pub fn text(&self) -> &str {
        self.text.trim()
    }
}

impl Running {
    pub fn start(mut command: Command, name: &str, stop: Stop) -> Result<Running> {
        let (reader, writer) = std::io::pipe()?;
        // A group of its own: Ctrl-C is for the demo, which ends it.
        command.process_group(0).stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        // Holds the pipe open as long as it is there.
        drop(command);
        let (stdin, chunks) = (child.stdin.take(), read(reader));
        let said = Said { name: name.to_owned(), text: String::new() };
        Ok(Running { child, stdin, chunks, said, shown: 0, mark: "", silent: false, stop })
    }

    /// Put before each line that is shown.
    pub fn marked(mut self, mark: &'static str) -> Running {
        self.mark = mark;
        self
    }

    /// Nothing is shown, until [`Self::skip`].
    pub fn silent(mut self) -> Running {
        self.silent = true;
        self
    }

    /// Listens until nothing came for so long.
    pub fn drain(&mut self, quiet: Duration) -> Result<()> {
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            let before = self.said.text.len();
            if !self.listen(LOOK)? {
                return Ok(());
            }
            if self.said.text.len() > before {
                last = Instant::now();
            }
        }
        Ok(())
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        Ok(stdin.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Forgets what was said until now; shows what comes from now on.
    pub fn skip(&mut self) {
        self.silent = false;
        self.said.text.clear();
        self.shown = 0;
    }

    /// The whole lines that were said until now, which are forgotten.
    pub fn take_lines(&mut self) -> String {
        let whole = self.said.text.rfind('\n').map_or(0, |end| end + 1);
        let rest = self.said.text.split_off(whole);
        self.shown = 0;
        std::mem::replace(&mut self.said.text, rest)
    }

    /// Forgets what was said up to the line with the last such text.
    pub fn skip_past(&mut self, text: &str) {
        let after = self.said.text.rfind(text).map_or(0, |at| at + text.len());
        let line_end = self.said.text[after..].find('\n').map_or(after, |end| after + end + 1);
        let rest = self.said.text.split_off(line_end);
        self.skip();
        self.said.text = rest;
        self.show_lines(false);
    }

    /// Reads and shows what comes. False once there will be no more.
    pub fn listen(&mut self, time: Duration) -> Result<bool> {
        if self.stop.asked() {
            bail!("interrupted");
        }
        match self.chunks.recv_timeout(time) {
            Ok(chunk) => {
                self.said.text.push_str(&String::from_utf8_lossy(&chunk).replace('\r', ""));
                self.show_lines(false);
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(true),
            Err(RecvTimeoutError::Disconnected) => {
                self.show_lines(true);
                Ok(false)
            }
        }
    }

    fn show_lines(&mut self, all: bool) {
        if self.silent {
            return;
        }
        while let Some(rest) = self.said.text.get(self.shown..) {
            let end = match rest.find('\n') {
                Some(end) => end,
                None if all && !rest.is_empty() => rest.len(),
                None => return,
            };
            println!("    {}{}", self.mark, printable(&rest[..end]));
            self.shown += end + 1;
        }
    }

    /// Waits until it says a text.
    pub fn hear(&mut self, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let more = self.listen(LOOK)?;
            if self.said.text.contains(text) {
                return Ok(());
            }
            if !more || Instant::now() > end {
                let waited = limit.as_secs();
                return self.said.expect(text).with_context(|| format!("waited {waited} s"));
            }
        }
    }

    /// Waits for its end, which has to be a good one.
    pub fn succeed(self) -> Result<Said> {
        let name = self.said.name.clone();
        match self.end()? {
            (0, said) => Ok(said),
            (code, said) => {
                bail!("`{name}`: expected success, but it ended with {code}:\n{}", said.text())
            }
        }
    }

    /// Waits for its end.
    pub fn end(mut self) -> Result<(i32, Said)> {
        drop(self.stdin.take());
        let end = Instant::now() + LIMIT;
        while self.listen(LOOK)? {
            if Instant::now() > end {
                bail!("`{}` did not end within {} s", self.said.name, LIMIT.as_secs());
            }
        }
        let status = self.child.wait()?;
        Ok((status.code().unwrap_or(-1), std::mem::take(&mut self.said)))
    }

    pub fn is_over(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already, most often.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without what steers a terminal: a guest's console may say anything.
fn printable(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // ESC [ parameters letter, or ESC and one character.
                if chars.next() == Some('[') {
                    while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                    chars.next();
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.chars().take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_without_control() {
        let check = |line: &str, expect: &str| assert_eq!(printable(line), expect);
        check("plain", "plain");
        check("\u{1b}[0;32m  OK  \u{1b}[0m done\u{7}", "  OK   done");
        check("\u{1b}[6nmicro#", "micro#");
        check("\u{1b}[", "");
        check("\u{1b}cx", "x");
        check(&"x".repeat(500), &"x".repeat(WIDTH));
    }
}
