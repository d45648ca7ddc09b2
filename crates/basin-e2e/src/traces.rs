//! Whether a server has anything left of what is elsewhere now, or is gone.

use std::time::Instant;

use crate::process;
use crate::server::Server;
use crate::wait::SOON;

impl Server {
    /// Waits until the server has nothing by these names (of a VM, of volumes): no process,
    /// no file, no export, no control group; and until it has just so many taps.
    #[track_caller]
    pub fn no_trace(&self, names: &[&str], taps: usize, when: &str) {
        let since = Instant::now();
        loop {
            let (left, found) = (self.traces(names), self.taps());
            if left.is_empty() && found == taps {
                return;
            }
            let limit = since.elapsed() < SOON;
            assert!(limit, "{when}: {found} taps, of which {taps} belong there; and {left:#?}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    fn traces(&self, names: &[&str]) -> Vec<String> {
        let (state, run) = (self.place.state_dir(), self.place.run_dir());
        let what: Vec<String> = names.iter().map(|name| format!("-name '*{name}*'")).collect();
        // What goes while it is looked at is no matter.
        let find = "find STATE RUN WHAT 2>/dev/null || true"
            .replace("STATE", &state.display().to_string())
            .replace("RUN", &run.display().to_string())
            .replace("WHAT", &what.join(" -o "));
        let mut left: Vec<String> = self.sh(&find).lines().map(str::to_owned).collect();
        let cgroups = self.place.cgroups();
        let cgroups = cgroups.iter().flat_map(|c| names.iter().map(|n| c.join(format!("vm-{n}"))));
        left.extend(cgroups.filter(|c| c.exists()).map(|c| c.display().to_string()));
        let lines = self.place.everything().into_iter();
        let lines = lines.map(|pid| process::command_line(pid).join(" "));
        left.extend(lines.filter(|line| names.iter().any(|name| line.contains(name))));
        left
    }

    fn taps(&self) -> usize {
        self.sh("ip -o link show type tun").lines().count()
    }
}
