// A C door to the control groups' quota, for tests/native/test_cores.py.
#include "cgroup.h"

#define DOOR extern "C" __attribute__((visibility("default")))

DOOR double quota(const char* root) { return mobillama::cpu_quota(root); }
