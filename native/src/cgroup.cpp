#include "cgroup.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

namespace mobillama {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

bool holds(const std::vector<std::string>& all, const std::string& one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

// A name as in mountinfo: blanks are written as octal numbers there.
std::string unescaped(const std::string& name) {
  const auto octal = [&](size_t at) { return at < name.size() && name[at] >= '0' && name[at] <= '7'; };
  std::string text;
  for (size_t at = 0; at < name.size(); at++) {
    if (name[at] == '\\' && octal(at + 1) && octal(at + 2) && octal(at + 3)) {
      text += static_cast<char>(std::stoi(name.substr(at + 1, 3), nullptr, 8));
      at += 3;
    } else {
      text += name[at];
    }
  }
  return text;
}

// A number of a group's file; -1 for "max", or anything else that is none.
int64_t number(std::istream& from) {
  std::string word;
  if (!(from >> word) || word.empty() || word.size() > 18 || word.find_first_not_of("0123456789") != std::string::npos)
    return -1;
  return std::strtoll(word.c_str(), nullptr, 10);
}

// A group's own limit.
double limit(const std::string& group) {
  int64_t quota = -1, period = -1;
  if (std::ifstream file(group + "/cpu.max"); file) {  // version 2
    quota = number(file);
    period = number(file);
  } else {
    std::ifstream quotas(group + "/cpu.cfs_quota_us"), periods(group + "/cpu.cfs_period_us");
    quota = number(quotas);
    period = number(periods);
  }
  return quota > 0 && period > 0 ? static_cast<double>(quota) / static_cast<double>(period) : kUnlimited;
}

// The path of this process's group in the hierarchy of a controller; version 2's has no name. "" if there is none.
std::string group_path(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? names.empty() : holds(split(names, ','), controller)) return line.substr(second + 1);
  }
  return "";
}

// What of `path` lies below `top`; "" if it is that, or lies elsewhere.
std::string below(const std::string& path, const std::string& top) {
  if (holds(split(path, '/'), "..")) return "";
  if (top == "/") return path == "/" ? "" : path;
  return path.compare(0, top.size(), top) == 0 && path[top.size()] == '/' ? path.substr(top.size()) : "";
}

}  // namespace

double cpu_quota(const std::string& root) {
  double least = kUnlimited;
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    const size_t middle = line.find(" - ");
    if (middle == std::string::npos) continue;
    const std::vector<std::string> place = split(line.substr(0, middle), ' '), kind = split(line.substr(middle + 3), ' ');
    if (place.size() < 5 || kind.size() < 3) continue;
    const bool first_version = kind[0] == "cgroup";
    if (kind[0] != "cgroup2" && !(first_version && holds(split(kind[2], ','), "cpu"))) continue;
    const std::string path = group_path(root, first_version ? "cpu" : "");
    if (path.empty()) continue;
    // A container sees the hierarchy from its own group on, whose path may be named from the top all the same.
    const std::string top = root + unescaped(place[4]);
    std::string group = below(path, unescaped(place[3]));
    for (;; group.erase(group.rfind('/'))) {
      least = std::min(least, limit(top + group));
      if (group.empty()) break;
    }
  }
  return least;
}

}  // namespace mobillama
