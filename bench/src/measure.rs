//! Samples and what is said of them: medians, 99th percentiles, ratios. And the one way to drive a load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

/// What was measured on one side of a comparison. Never empty.
#[derive(Debug, Clone)]
pub struct Samples {
    sorted: Vec<f64>,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Less is better.
    Milliseconds,
    /// More is better.
    PerSecond,
    /// Of memory. Less is better.
    Mebibytes,
}

impl Samples {
    pub fn of_latencies(latencies: impl IntoIterator<Item = Duration>) -> Result<Samples> {
        let milliseconds = latencies.into_iter().map(|latency| latency.as_secs_f64() * 1_000.0);
        Samples::new(milliseconds.collect(), Unit::Milliseconds)
    }

    pub fn of_rates(per_second: Vec<f64>) -> Result<Samples> {
        Samples::new(per_second, Unit::PerSecond)
    }

    pub fn of_mebibytes(mebibytes: Vec<f64>) -> Result<Samples> {
        Samples::new(mebibytes, Unit::Mebibytes)
    }

    fn new(mut values: Vec<f64>, unit: Unit) -> Result<Samples> {
        ensure!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Ok(Samples { sorted: values, unit })
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    pub fn unit(&self) -> Unit {
        self.unit
    }

    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        match self.sorted.len() % 2 {
            1 => self.sorted[middle],
            _ => (self.sorted[middle - 1] + self.sorted[middle]) / 2.0,
        }
    }

    /// The least sample that at least 99 of 100 don't exceed. Below 100 samples that is the greatest one.
    pub fn p99(&self) -> f64 {
        let rank = (self.sorted.len() * 99).div_ceil(100);
        self.sorted[rank - 1]
    }

    pub fn ratio_to(&self, reference: &Samples) -> f64 {
        self.median() / reference.median()
    }
}

pub async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(Duration, T)> {
    let began = Instant::now();
    let done = work.await?;
    Ok((began.elapsed(), done))
}

/// One client's requests: client number, request number.
pub type Request = dyn Fn(usize, usize) -> futures_util::future::BoxFuture<'static, Result<()>> + Send + Sync;

/// What many requests came to. Those that failed have no latency.
#[derive(Debug, Default)]
pub struct Load {
    pub latencies: Vec<Duration>,
    pub failed: usize,
    first_failure: Option<String>,
    elapsed: Duration,
}

impl Load {
    pub const fn new() -> Load {
        Load { latencies: Vec::new(), failed: 0, first_failure: None, elapsed: Duration::ZERO }
    }

    pub fn add(&mut self, ended: Result<(Duration, ())>) {
        match ended {
            Ok((latency, ())) => self.latencies.push(latency),
            Err(error) => {
                self.failed += 1;
                self.first_failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// A load of which more than one in a hundred fails measures something else.
    pub fn sound(&self) -> Result<()> {
        let total = self.latencies.len() + self.failed;
        let cause = self.first_failure.as_deref().unwrap_or("no request was made");
        ensure!(
            total > 0 && self.failed * 100 <= total,
            "{} of {total} requests failed: {cause}",
            self.failed
        );
        Ok(())
    }
}

/// Clients that each ask, wait for the answer and ask again, for so long, and once at least.
pub async fn drive(clients: usize, lasting: Duration, request: Arc<Request>) -> Result<Load> {
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for client in 0..clients {
        let request = request.clone();
        tasks.spawn(async move {
            let mut load = Load::new();
            for number in 0.. {
                load.add(timed(request(client, number)).await);
                if began.elapsed() >= lasting {
                    break;
                }
            }
            load
        });
    }
    let mut all = Load::new();
    while let Some(load) = tasks.join_next().await {
        let load = load.context("a client panicked")?;
        all.latencies.extend(load.latencies);
        all.failed += load.failed;
        all.first_failure = all.first_failure.or(load.first_failure);
    }
    all.elapsed = began.elapsed();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(milliseconds: &[u64]) -> Samples {
        Samples::of_latencies(milliseconds.iter().map(|ms| Duration::from_millis(*ms))).unwrap()
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(samples(&[9, 1, 5]).median(), 5.0);
        assert_eq!(samples(&[4, 1, 3, 2]).median(), 2.5);
        assert_eq!(samples(&[7]).median(), 7.0);
    }

    #[test]
    fn p99_is_a_sample_and_the_greatest_of_few() {
        let hundred: Vec<u64> = (1..=100).collect();
        let two_hundred: Vec<u64> = (1..=200).collect();

        assert_eq!(samples(&hundred).p99(), 99.0);
        assert_eq!(samples(&two_hundred).p99(), 198.0);
        assert_eq!(samples(&[3, 1, 2]).p99(), 3.0);
    }

    #[test]
    fn a_ratio_is_of_medians() {
        assert_eq!(samples(&[1, 2, 90]).ratio_to(&samples(&[4, 4, 4])), 0.5);
    }

    #[test]
    fn nothing_measured_is_an_error() {
        assert!(Samples::of_rates(Vec::new()).is_err());
    }

    #[tokio::test]
    async fn a_load_stops_by_itself_and_counts_failures_apart() {
        let request: Arc<Request> = Arc::new(|client, number| {
            Box::pin(async move {
                tokio::task::yield_now().await;
                ensure!(client == 0 || number > 0, "the second client's first");
                Ok(())
            })
        });

        let load = drive(2, Duration::from_millis(20), request).await.unwrap();

        assert_eq!(load.failed, 1);
        assert!(!load.latencies.is_empty() && load.per_second() > 0.0);
    }

    #[test]
    fn a_load_that_mostly_fails_is_not_a_measurement() {
        let failing = Load { failed: 2, latencies: vec![Duration::ZERO; 100], ..Load::default() };
        let sound = Load { failed: 1, latencies: vec![Duration::ZERO; 99], ..Load::default() };

        assert!(failing.sound().is_err() && Load::default().sound().is_err());
        assert!(sound.sound().is_ok());
    }
}
