//! What the machine says of itself: memory and load, as `/proc` has them.

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::thread::available_parallelism;

/// Memory and load of this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Machine {
    /// Memory that programs can still get, in bytes.
    pub available_memory_bytes: u64,
    /// Memory altogether, in bytes.
    pub total_memory_bytes: u64,
    /// Load averages of the last 1, 5 and 15 minutes.
    pub load: [f32; 3],
}

impl Machine {
    /// Reads them; what cannot be read is zero.
    pub fn read() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        let memory = text("/proc/meminfo");
        Self {
            available_memory_bytes: meminfo(&memory, "MemAvailable:"),
            total_memory_bytes: meminfo(&memory, "MemTotal:"),
            load: loadavg(&text("/proc/loadavg")),
        }
    }

    /// Returns the load of the last minute, in hundredths of a core for each core: 100 is all of them busy.
    pub fn load_percent(&self) -> u16 {
        // Every look at the node asks for it, and it is a walk through the control groups.
        static CORES: LazyLock<usize> =
            LazyLock::new(|| available_parallelism().map_or(1, NonZeroUsize::get));
        let cores = *CORES;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "few cores, and a cast to an integer takes the nearest that fits"
        )]
        let percent = (self.load[0] * 100.0 / cores as f32).round() as u16;
        percent
    }
}

/// Where the figures come from.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Figures {
    /// `/proc`, each time anew.
    #[default]
    Proc,
    /// Always these: a machine of a test.
    Fixed(Machine),
}

impl Figures {
    /// Returns the figures now.
    pub fn read(&self) -> Machine {
        match self {
            Self::Proc => Machine::read(),
            Self::Fixed(machine) => *machine,
        }
    }
}

/// Finds a line of `/proc/meminfo`, `MemTotal:       24048364 kB`, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Reads the first three numbers of `/proc/loadavg`, `0.20 0.18 0.12 1/80 11206`.
fn loadavg(text: &str) -> [f32; 3] {
    let mut numbers = text
        .split_whitespace()
        .map(|number| number.parse().unwrap_or_default());
    std::array::from_fn(|_| numbers.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24048364 kB\nMemFree:        1 kB\nMemAvailable:   2 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), 24_048_364 * 1024);
        assert_eq!(meminfo(text, "MemAvailable:"), 2048);
        assert_eq!(meminfo("", "MemTotal:"), 0);
    }

    #[test]
    fn load_is_the_first_three_numbers() {
        assert_eq!(loadavg("0.20 0.18 0.12 1/80 11206\n"), [0.20, 0.18, 0.12]);
        assert_eq!(loadavg("odd"), [0.0; 3]);
    }
}
