#define MI_NAMESPACE baseline
#include "kernels.inc.hpp"
