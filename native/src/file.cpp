#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "failure.h"

namespace mobillama {

namespace {

int64_t modified_ns(const struct stat& status) {
#if defined(__APPLE__)
  return int64_t(status.st_mtimespec.tv_sec) * 1'000'000'000 + status.st_mtimespec.tv_nsec;
#else
  return int64_t(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
#endif
}

}  // namespace

std::string shown_path(const std::string& path) {
  return path.size() > 300 ? "..." + path.substr(path.size() - 300) : path;
}

File::File(const std::string& path) : path_(path) {
  // Without O_NONBLOCK the opening of a named pipe would wait for a writer.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(MOBILLAMA_IO, "%s: cannot be opened: %s", shown_path(path).c_str(), std::strerror(errno));
  struct stat status{};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    const std::string reason = known ? "it is no regular file; give the path of a GGUF file" : std::strerror(errno);
    ::close(descriptor_);  // no destructor runs when a constructor throws
    fail(MOBILLAMA_IO, "%s: cannot be read: %s", shown_path(path).c_str(), reason.c_str());
  }
  size_ = status.st_size;
  modified_ns_ = modified_ns(status);
}

File::~File() { ::close(descriptor_); }

void File::read(int64_t offset, void* to, int64_t n) const {
  auto* out = static_cast<char*>(to);
  while (n > 0) {
    // One call may give at most 2 GiB; a smaller step also lets an interrupted one go on.
    const ssize_t got = ::pread(descriptor_, out, size_t(std::min<int64_t>(n, 1 << 30)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      fail(MOBILLAMA_IO, "%s: cannot be read at byte %lld: %s", shown_path(path_).c_str(), (long long)offset,
           std::strerror(errno));
    }
    if (got == 0) {
      fail(MOBILLAMA_IO, "%s: ends at byte %lld, but had %lld bytes when it was opened: it was cut while open",
           shown_path(path_).c_str(), (long long)offset, (long long)size_);
    }
    out += got;
    offset += got;
    n -= got;
  }
}

void File::check_unchanged() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) {
    fail(MOBILLAMA_IO, "%s: cannot be checked: %s", shown_path(path_).c_str(), std::strerror(errno));
  }
  if (status.st_size != size_ || modified_ns(status) != modified_ns_) {
    fail(MOBILLAMA_IO, "%s: was changed while it was read (%lld bytes, %lld at the opening); open it again",
         shown_path(path_).c_str(), (long long)status.st_size, (long long)size_);
  }
}

}  // namespace mobillama
