//! What one command costs a region's state, small and large: it should be the same.

mod world;

use std::hint::black_box;
use std::time::{Duration, Instant};

use atoll_api::sandbox::{Desired, Phase};
use atoll_consensus::state::region::{REPEAT_WINDOW_MS, RegionCommand, RegionState};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use world::{NOW_MS, SIZES, accept, create, placement, region_of, report, sandbox_id};

/// Creates that are timed together, before they are undone untimed, so that the region keeps its size.
const CREATES: u64 = 256;

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    for size in SIZES {
        let mut state = region_of(size);
        group.bench_function(BenchmarkId::new("CreateSandbox", size), |bencher| {
            bencher.iter_custom(|iterations| {
                let (mut left, mut took) = (iterations, Duration::ZERO);
                while left > 0 {
                    let numbers = size..size + left.min(CREATES);
                    let commands: Vec<RegionCommand> = numbers.clone().map(create).collect();
                    let began = Instant::now();
                    for command in commands {
                        black_box(state.apply(command));
                    }
                    took += began.elapsed();
                    left -= numbers.end - numbers.start;
                    for number in numbers {
                        remove(&mut state, number);
                    }
                    accept(
                        &mut state,
                        RegionCommand::ExpireTokens { now_ms: NOW_MS + size + CREATES + REPEAT_WINDOW_MS },
                    );
                }
                took
            });
        });
        group.bench_function(BenchmarkId::new("ReportPhase", size), |bencher| {
            let mut number = 0;
            bencher.iter(|| {
                number = (number + 1) % size;
                let phase = if number % 2 == 0 { Phase::Running } else { Phase::Starting };
                state.apply(black_box(report(number, phase)))
            });
        });
        group.bench_function(BenchmarkId::new("SetLabels", size), |bencher| {
            let mut number = 0;
            bencher.iter(|| {
                number = (number + 1) % size;
                state.apply(black_box(RegionCommand::SetLabels {
                    sandbox_id: sandbox_id(number),
                    labels: [("team".to_owned(), "research".to_owned())].into(),
                    now_ms: NOW_MS + number,
                }))
            });
        });
    }
    group.finish();
}

fn remove(state: &mut RegionState, number: u64) {
    let (sandbox_id, now_ms) = (sandbox_id(number), NOW_MS + number);
    accept(state, RegionCommand::SetDesired { sandbox_id, desired: Desired::Deleted, now_ms });
    accept(state, RegionCommand::ReportDeleted { sandbox_id, placement: placement(number) });
}

criterion_group!(benches, apply);
criterion_main!(benches);
