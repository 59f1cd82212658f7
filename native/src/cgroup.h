// The CPU time that this process's control groups (containers) allow.
#pragma once

#include <string>

namespace mobillama {

// Seconds of CPU time that this process may use a second; infinite where no control group limits it. The least of the
// process's group and the groups around it, as far as they can be seen, of versions 1 and 2. root: what stands before
// /proc and the file systems it names. Source: cgroups(7), the kernel's cgroup-v2.rst. src/mobillama/cores.py asks the
// same.
double cpu_quota(const std::string& root = "");

}  // namespace mobillama
