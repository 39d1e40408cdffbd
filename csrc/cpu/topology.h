// How many threads this process may usefully run.
#pragma once

namespace tokprune {

// min(physical cores in the affinity mask, cgroup CPU quota), at least 1. Containers that limit
// CPU time by quota report every core of the host, so the core count alone would oversubscribe.
int default_thread_count();

}  // namespace tokprune
