// Errors that reach the user. std::invalid_argument becomes Python's ValueError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tokprune {

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Throws std::invalid_argument with the concatenated parts unless `condition` holds.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(concat(parts...));
}

}  // namespace tokprune
